"""Text of captions and prompts as token ids.

`tokenizer` reads any Hugging Face tokenizer.json, LLaMA-3's included, and trains a byte-level BPE on captions.
"""
