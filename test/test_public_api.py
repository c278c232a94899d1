"""What the package root exports: there, typed, and light until it is used."""

import subprocess
import sys

import specprune_ros


def test_every_exported_name_is_there_and_documented():
    for name in specprune_ros.__all__:
        value = getattr(specprune_ros, name)
        assert value.__doc__, name
    assert set(specprune_ros.__all__) <= set(dir(specprune_ros))


def test_importing_the_root_imports_no_torch():
    code = 'import sys, specprune_ros; print("torch" in sys.modules, "rclpy" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']


def test_an_unknown_name_is_an_attribute_error():
    try:
        _ = specprune_ros.nothing_of_the_kind
    except AttributeError as error:
        assert 'nothing_of_the_kind' in str(error)
    else:
        raise AssertionError('no error')
