"""The one trainer: state, step, optimiser, mesh, checkpoints, metrics, writers, loop. It knows the protocol of a task only."""
