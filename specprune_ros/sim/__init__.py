"""The simulated arm: scene, tasks, expert, training and closed-loop evaluation."""
