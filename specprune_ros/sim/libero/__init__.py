"""Episodes of LIBERO, where the library is installed."""
