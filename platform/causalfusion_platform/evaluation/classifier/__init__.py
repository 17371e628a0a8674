"""The classifier of a data set: trained once by a fixed recipe, and kept beside the shards.

`recipe` fixes the training and names the classifier. `train` trains it on streamed rows, and takes the statistics
of the real images. `folder` finds, trains and keeps it. `progress` reports work that takes long. Open `folder`
first.
"""
