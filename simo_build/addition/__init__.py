"""`simo-build --add-task`: one more head for a finished bundle, whose encoder stays as it is.

The head learns on the features that the bundle's own encoder graph gives, so that neither base nor
experts are needed, and what it learnt on is what it will be given. No file of the encoder and of
the other heads changes by a byte: new are the head's graphs, rewritten are the joint graphs (which
take their weights from the same files), the golden outputs and the manifest.
"""
