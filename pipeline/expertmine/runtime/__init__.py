"""How a list of tasks is run: one process, Ray actors, or Dask workers. Imports no stage: it is handed a callable.

Each runtime offers ``run(make_worker, tasks, …)``: it makes workers by calling ``make_worker()`` where they live, gives
each task to one of them, and yields results as they come. Tasks are idempotent, so a lost worker's task runs again.
"""
