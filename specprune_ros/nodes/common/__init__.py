"""What every node needs: lifecycle, parameters, QoS, images, time."""
