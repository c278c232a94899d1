"""SpecPrune-VLA token pruning for vision-language-action models, on ROS 2."""

from pkgutil import extend_path

# Run from a checkout, this folder shadows the installed package, which holds the generated
# messages: look for `specprune_ros.msg` there as well.
__path__ = extend_path(__path__, __name__)
