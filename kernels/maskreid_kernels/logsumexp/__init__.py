"""Losses made of log-sum-exps over an anchor's pairs: N-pair, all pairs, circle, supervised contrastive.

With x = embeddings (L2-normalised when `normalize`), S = x x^T, B+ / B- = the other images of the anchor's
identity / the images of other identities, every loss here reads its anchor's negatives through one number,

    A_k = log sum_{j in B-} exp(f(S_kj))        f(S) = scale S, or circle's,

and is the mean, over the valid anchors (those with a positive and a negative), of a function of A_k and of
the positives' similarities. So dL(k)/dS_kj = dL(k)/dA_k exp(f(S_kj) - A_k) f'(S_kj) on every negative: one
forward and one backward over the N x N pairs serve all four, and a loss adds only what it does with its few
positives.

All four functions take the same tensors and keep the same rules. embeddings: [B, D] float64, float32,
bfloat16 or float16; labels: [B] integers of any value, in any order. Computed and returned, as a 0-d tensor,
in float32 (float64 for float64 input), also under autocast; the gradient has the input's dtype. normalize:
L2-normalise here, the gradient goes through; a zero row gets zero gradient. No scale overflows: maxima are
subtracted. A batch without a valid anchor gives 0, with zero gradient. group: the batch is that of all its
ranks; convention in `maskreid_kernels.ranks`. None: this process alone. backend: "reference" (plain autograd,
O(N^2) memory), "dense" (O(N^2) memory, its own backward: for small batches), "chunked" (O(N D) memory;
differentiating its gradient raises RuntimeError), "triton" (the same on a GPU, fused) or "auto". precision:
of "triton" alone, a preset of `maskreid_kernels.precision` for the negatives' similarities; "auto" follows
the rows' dtype and torch.set_float32_matmul_precision. reduction, ignore_index: see
`maskreid_kernels.options`. reference: a pair (rows [R, D], labels [R]) that are the only candidates, the
batch's rows being anchors alone; see there. By "chunked" and "reference". A scale or temperature that
requires grad gets its gradient, where there is no margin. ValueError on bad input or an unavailable backend.

Modules: a loss each in n_pair, all_pairs, circle, supervised_contrastive; the shared engines in reference,
dense, chunked and triton (on programs), and in crossed where the candidates are not the batch, chosen in
family; what a loss has to say to them in terms and exponent.
"""
