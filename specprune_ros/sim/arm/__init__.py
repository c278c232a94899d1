"""The simulated arm in MuJoCo: scene, robot description, rendering."""
