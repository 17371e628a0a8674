"""Networks that turn images into features.

`extractor` is the protocol that every extractor fulfils. `inception*` is InceptionV3 with the released FID weights,
`digits*` a classifier trained on the data set itself, `resize` ADM's image resizing. Open `extractor` first.
"""
