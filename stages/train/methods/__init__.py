"""What each method minimises, one module a method; :mod:`stages.train.methods.registry` lists them."""
