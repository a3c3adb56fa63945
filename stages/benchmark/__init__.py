"""Methods x bits x seeds x data sets, compared under one protocol, with one search of hyperparameters for all."""
