"""How a list of tasks is run: in this process, by Ray actors, or by Dask workers. Knows no stage.

`executors.open_executor` opens a runtime by its name, and gives an `Executor` (protocol.py). Its
``run(make_worker, tasks, on_event)`` makes workers by calling ``make_worker()`` where they live, gives each task to one
of them, and yields results as they come. A task ends in the same three ways everywhere (outcomes.py). Tasks must be
idempotent: one whose attempt failed, or whose worker was lost, runs again.
"""
