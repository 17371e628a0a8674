"""Text of a model: tokens, their embeddings, and prompts.

`tokenizer` makes tokens of text, `embedding` holds their table and their output layer, and `prompts` is a batch of
them. `causalfusion.text_objective` trains on text, and `causalfusion.sampling.caption` decodes it. Open `embedding`
first.
"""
