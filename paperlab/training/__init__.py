"""The one trainer: state, step, optimiser, mesh, checkpoints, metrics, loop. It knows only the protocol of a task."""
