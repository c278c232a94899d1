"""Speed: policies timed against each other and against what the device can do."""
