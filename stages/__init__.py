"""conceptbits: unsupervised image hashing as a staged, cached, versioned pipeline.

One sub-package is one stage of ``dvc.yaml``; the modules beside them are the few things that stages share.
Run a stage with ``python -m stages NAME``, all of them with ``dvc repro``.
"""
