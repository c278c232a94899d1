"""Between a chunk of actions and an arm: speed, time, limits, watchdog, robot profiles.

Free of ROS and of torch. Units are SI: metres, radians, seconds; stamps are integer nanoseconds.
"""
