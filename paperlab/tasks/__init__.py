"""What is learned: loss, metrics, evaluation and data of a problem, independent of the model."""
