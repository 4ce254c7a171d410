"""q1's: CIFAR-10, training, evaluation."""
