"""Pip gets the half of the package without ROS; colcon builds all of it from CMakeLists.txt."""

from setuptools import setup

setup()
