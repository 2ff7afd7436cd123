"""The shared encoder with its LoRA bank: texts and adapters in, logits out. A plain library that knows no server.

    tokenise -> plan -> encoder + LoRA bank -> per-adapter head -> labels

Letters in shape comments, here and everywhere below: B batch (rows), T tokens, D hidden, R rank, S slots, C classes.
"""
