"""flops.py: how many floating-point operations a training step takes, from shapes alone; a multiplication and an addition are two.

What has to be computed, which is what the engine computes: the rows are those of the token tree, so a prefix that examples share
is there once, and the token that an example ends in, being predicted and never read, not at all. Of n rows, P of them the
prompt's, r are read (one an example):

    forward     each layer but the last   2 n (d (q + 2 kv) + q d + 3 d f)
                the last                  2 n d 2 kv  +  2 r (d q + q d + 3 d f): keys and values of all rows
                head                      2 r d V
                attention                 4 q a query and key that sees it: scores and their sum of values
    backward    as much as forward for each product, the weights being frozen; layer 0 hands the prompt's rows on only
                attention                 10 q a query and key: scores again, and the gradients of weights, values, queries, keys

with d = d_model, f = d_ffn, q = n_head d_head, kv = n_head_kv d_head, V = n_vocab. Norms, activations and softmax are left out:
less than one in a hundred.
"""

FORWARD_ATTENTION, BACKWARD_ATTENTION = 4, 10


def tree_rows(n_virtual, contexts):
    """-> rows of the tree, pairs of a query and a key it sees over all rows, rows that are read, pairs over those."""
    prefixes = {tuple(context[:n]) for context in contexts for n in range(1, len(context) + 1)}
    read = {tuple(context) for context in contexts}
    of_prompt = n_virtual * (n_virtual + 1) // 2
    return (n_virtual + len(prefixes), of_prompt + sum(n_virtual + len(p) for p in prefixes), len(read),
            sum(n_virtual + len(p) for p in read))


def training_step(shape, n_virtual, contexts):
    """shape: softprompt info --json of the model -> {"matmul", "attention"}, operations of one step."""
    d, f, layers = shape["d_model"], shape["d_ffn"], shape["n_layer"]
    q, kv = shape["n_head"] * shape["d_head"], shape["n_head_kv"] * shape["d_head"]
    n, pairs, n_read, pairs_read = tree_rows(n_virtual, contexts)
    qkv, behind = d * (q + 2 * kv), q * d + 3 * d * f
    whole = 2 * n * (qkv + behind) * (layers - 1)
    last = 2 * n * d * 2 * kv + 2 * n_read * (d * q + behind)
    head = 2 * n_read * d * shape["n_vocab"]
    unneeded = 2 * (n - n_virtual) * (qkv if layers > 1 else d * 2 * kv) + (0 if layers > 1 else 2 * n_read * d * q)
    attention = q * (pairs * (layers - 1) + pairs_read)
    return {"matmul": 2 * (whole + last + head) - unneeded, "attention": (FORWARD_ATTENTION + BACKWARD_ATTENTION) * attention}


def decode_bytes(shape, context):
    """What the step of one token must read: the file's weights, and the keys and values of the context, which are floats."""
    return shape["file_bytes"] + 2 * shape["n_layer"] * shape["n_head_kv"] * shape["d_head"] * 4 * context
