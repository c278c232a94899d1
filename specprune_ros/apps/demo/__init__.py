"""The demo: simulated arm, policy and executor over DDS, watched and recorded."""
