"""Networks that turn images into features.

`extractor` is the protocol that every extractor fulfils. `inception*` is InceptionV3 with the released FID weights.
`classifier_extractor` is a classifier of the data set itself, with the network `small_cnn`. `resize` is ADM's image
resizing. Open `extractor` first.
"""
