/* ops.h - the catalogue of ops: what each computes, on which shapes.  Formulas stand in <op>.c.
 * Every tensor argument named `weight`, `bias` ... may be a parameter (sd_use) or an ordinary tensor; NULL where "or NULL".
 * Activations are F32, BF16 or F16, those of one op alike, and so is its result; add_noise and mse take F32 alone; what has no
 * activation among its inputs (embedding, timestep_embedding) gives the graph's type.  Letters: batch B, height H, width W, channels C, tokens L, width D. */
#ifndef SD_OPS_H
#define SD_OPS_H

#include "graph.h"

#ifdef __cplusplus
extern "C" {
#endif

/* linear - y = x weight' + bias + residual.
 *   x [..., in], pitched ok;  weight [out, in] (or [out, in, 1, 1]);  bias [out] or NULL;  residual like y or NULL
 *   returns [..., out] */
struct sd_tensor *sd_op_linear(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
                               struct sd_tensor *residual);
/* the same over the columns of x and of beside [..., in2] (or NULL), as if these were one tensor; weight [out, in + in2] */
struct sd_tensor *sd_op_linear_beside(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *beside, struct sd_tensor *weight,
                                      struct sd_tensor *bias, struct sd_tensor *residual);

/* projections - several linear layers over the same x, side by side, each with an adapter or without:
 *     y_p = x weight_p' + bias_p + scale_p (x down_p') up_p'  in columns of their own,  + residual
 *   x [..., in], pitched ok;  weight [out_p, in] frozen;  bias [out_p] frozen, or NULL
 *   down [rank_p, in], up [out_p, rank_p], trainable or not;  scale [1] frozen;  all three NULL: no adapter; scale NULL: 1
 *   (two-dimensional ones may have the shape [.., .., 1, 1]);  residual like y or NULL
 *   returns [..., sum of out_p]; take columns by sd_slice */
enum { SD_MAX_PROJECTIONS = 64 };
struct sd_projection { struct sd_param *weight, *bias, *down, *up, *scale; };
struct sd_projections { int parts; const struct sd_projection *part; };
struct sd_tensor *sd_op_projections(struct sd_graph *g, struct sd_tensor *x, const struct sd_projections *a,
                                    struct sd_tensor *residual);

/* conv2d - 2-D convolution over NHWC with a file-layout weight.
 *   x [B, H, W, in];  weight [out, in, kh, kw];  bias [out] or NULL
 *   channel_add [B, out], pitched ok, or NULL: added to every pixel (the time embedding of a resnet)
 *   residual like y or NULL
 *   upsample 1 or 2: x is first enlarged by repeating pixels (stride 1, padding less than the kernel only)
 *   returns [B, (H*upsample + top + bottom - kh)/stride + 1, ..., out] */
struct sd_conv2d { int stride, top, left, bottom, right, upsample; };
struct sd_tensor *sd_op_conv2d(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
                               struct sd_tensor *channel_add, struct sd_tensor *residual, struct sd_conv2d a);

/* group_norm - normalise each sample over groups of channels, scale and shift, then SiLU when asked.
 *   x [B, H, W, C] (or [B, L, C]);  weight, bias [C];  groups divides C;  saves mean and 1/std [B, groups, 2] */
struct sd_tensor *sd_op_group_norm(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
                                   int groups, double eps, bool silu);
/* the same over the channels of x and of beside [B, H, W, C2] (or NULL), as if these were one tensor; returns [B, H, W, C + C2] */
struct sd_tensor *sd_op_group_norm_beside(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *beside,
                                          struct sd_tensor *weight, struct sd_tensor *bias, int groups, double eps, bool silu);

/* layer_norm - normalise each row, scale and shift.  x [..., D];  weight, bias [D];  saves mean and 1/std [rows, 2] */
struct sd_tensor *sd_op_layer_norm(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
                                   double eps);

/* silu x/(1+exp(-x));  gelu x*Phi(x), exact with erf;  quick_gelu x/(1+exp(-1.702x));  element by element. */
struct sd_tensor *sd_op_silu(struct sd_graph *g, struct sd_tensor *x);
struct sd_tensor *sd_op_gelu(struct sd_graph *g, struct sd_tensor *x);
struct sd_tensor *sd_op_quick_gelu(struct sd_graph *g, struct sd_tensor *x);

/* geglu - x [..., 2C] = [value, gate]; returns value * gelu(gate) [..., C] */
struct sd_tensor *sd_op_geglu(struct sd_graph *g, struct sd_tensor *x);

/* attention - softmax(scale q k' + mask) v per head; no L x S matrix is ever held.
 *   q [B, L, heads*d], k and v [B, S, heads*d], heads side by side, each may be pitched columns
 *   causal: token i sees keys 0..i (L = S);  saves log-sum-exp [B, heads, L];  returns [B, L, heads*d] */
struct sd_attention { int heads; bool causal; double scale; };      /* scale 0: 1/sqrt(d) */
struct sd_tensor *sd_op_attention(struct sd_graph *g, struct sd_tensor *q, struct sd_tensor *k, struct sd_tensor *v,
                                  struct sd_attention a);

/* add - a + b, same shape.  scale - x * s, s a tensor of one element. */
struct sd_tensor *sd_op_add(struct sd_graph *g, struct sd_tensor *a, struct sd_tensor *b);
struct sd_tensor *sd_op_scale(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *s);

/* concat - [..., Ca] and [..., Cb] to [..., Ca + Cb].   upsample - [B,H,W,C] to [B,2H,2W,C] by repeating pixels. */
struct sd_tensor *sd_op_concat(struct sd_graph *g, struct sd_tensor *a, struct sd_tensor *b);
struct sd_tensor *sd_op_upsample(struct sd_graph *g, struct sd_tensor *x);

/* embedding - rows of a table by id, plus positions.
 *   ids [B, L] SD_I32;  table [V, D];  rows [n, D] or NULL: ids V..V+n-1 read it (the learned tokens);
 *   positions [P, D] or NULL, P >= L: row l is added to token l.  Gradients: table, rows, positions.
 *   An id outside is caught before the run by the caller (sd_bug here). */
struct sd_tensor *sd_op_embedding(struct sd_graph *g, struct sd_tensor *ids, struct sd_tensor *table, struct sd_tensor *rows,
                                  struct sd_tensor *positions);

/* timestep_embedding - t [B] to sinusoids [B, width]: f_i = exp(-ln(10000) i / (width/2 - shift)); cos first when flip. */
struct sd_timestep_embedding { int width; bool flip; double shift; };
struct sd_tensor *sd_op_timestep_embedding(struct sd_graph *g, struct sd_tensor *t, struct sd_timestep_embedding a);

/* add_noise - y[b] = a[b] x[b] + s[b] noise[b].  x, noise [B, ...];  a, s [B] */
struct sd_tensor *sd_op_add_noise(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *noise, struct sd_tensor *a,
                                  struct sd_tensor *s);

/* mse - per sample: weight[b] * sum_{i} mask[b,pixel(i)] (pred - target)^2.
 *   pred, target [B, h, w, C];  mask [B, h, w] or NULL (all ones);  weight [B], holding every normalisation
 *   (1/(h w C), min-SNR, mask area);  returns [B]; its gradient is taken with respect to pred only. */
struct sd_tensor *sd_op_mse(struct sd_graph *g, struct sd_tensor *pred, struct sd_tensor *target, struct sd_tensor *mask,
                            struct sd_tensor *weight);

/* cast - x in another type of activations (x itself where it has it already). */
struct sd_tensor *sd_op_cast(struct sd_graph *g, struct sd_tensor *x, enum sd_dtype dtype);

/* copy - a dense copy of a pitched tensor. */
struct sd_tensor *sd_op_copy(struct sd_graph *g, struct sd_tensor *x);

#ifdef __cplusplus
}
#endif
#endif
