"""One file per family of policies: what differs around the shared decoder."""
