"""Online: HTTP -> authenticate -> validate -> route to an arm -> queue -> engine -> labels -> HTTP, metrics.

Three kinds of process, each with its own half of this room:

    main          serve.py, host.py: supervises, drains
    API process   app.py and the handlers, mailbox.py, watch.py: never imports torch
    worker        worker.py, loader.py: the engine, one process a device

They meet in messages.py (what crosses the queues) and run_directory.py (what each says of itself).
"""
