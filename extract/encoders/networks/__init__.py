"""Networks of encoders: built by timm, by transformers or by their authors, with their pooling."""
