/* What Python passes, and one thread's place to work in. `bindings.py` repeats the order of `Call`. */

typedef struct {
    real *data;
    int64_t batch, time, head, gate; /* strides, in numbers */
} View;

typedef struct {
    real **data; /* of every layer, [out, in] of every row and head in order */
    int64_t *batch; /* stride of the batch, 0 where one row stands for all */
} Weights;

typedef struct {
    int64_t rows, heads, time, width, layers, chunk; /* rows of the batch */
    int64_t residual, silu, dot, toward_initial, threads;
    double max_surprise; /* 0 without a clamp */
    int64_t pieces, every; /* most pieces of a row; a state is kept of so many of them */
    int64_t *sizes; /* widths of the MLP, layers + 1 */
    int64_t *phase; /* where in its chunk each row of the batch begins */
    uint8_t *mask, *reset; /* [rows, time]; reset may be absent */
    View q, k, v, step, momentum, forget;
    real *gain, *bias; /* [heads, width], or absent */
    Weights base, start_memory, start_surprise, memory, held, surprise;
    real *y; /* [rows, time, heads, width] */
    Weights last_memory, last_held, last_surprise;
    real *sums, *states; /* kept for the backward, or absent */
    real *dy;
    Weights d_last_memory, d_last_held, d_last_surprise;
    View d_q, d_k, d_v, d_step, d_momentum, d_forget;
    real *d_gain, *d_bias; /* [rows, heads, width] */
    Weights d_base, d_start_memory, d_start_surprise, d_memory, d_held, d_surprise;
} Call;

/* A layer's matrices [tall, narrow] in panels: the sides are out and in, or in and out. */
typedef struct {
    long in, out, tall, narrow;
    int wide_out; /* tall is out */
    long area;
} Layer;

INLINE Layer layer_of(const Call *call, long l)
{
    long in = call->sizes[l], out = call->sizes[l + 1];
    int wide_out = out > in;
    long tall = wide_out ? out : in, narrow = wide_out ? in : out;
    return (Layer){in, out, tall, narrow, wide_out, area(tall, narrow)};
}

/* Hands out pieces of one block; without a block it only measures. */
typedef struct {
    char *block;
    size_t used;
} Arena;

static real *take(Arena *arena, long count)
{
    real *out = arena->block ? (real *)(arena->block + arena->used) : NULL;
    arena->used += padded(count) * sizeof(real);
    return out;
}

static void read_matrix(real *out, const Layer *layer, const Weights *from, long l, long row, long heads)
{
    long size = layer->in * layer->out;
    const real *x = from->data[l] + row / heads * from->batch[l] + row % heads * size;
    if (layer->narrow % PANEL)
        memset(out, 0, layer->area * sizeof(real));
    for (long o = 0; o < layer->out; o++)
        for (long i = 0; i < layer->in; i++)
            out[layer->wide_out ? place(layer->tall, o, i) : place(layer->tall, i, o)]
                = x[o * layer->in + i];
}

static void write_matrix(const Weights *to, const real *in, const Layer *layer, long l, long row, long heads)
{
    long size = layer->in * layer->out;
    real *x = to->data[l] + row / heads * to->batch[l] + row % heads * size;
    for (long o = 0; o < layer->out; o++)
        for (long i = 0; i < layer->in; i++)
            x[o * layer->in + i]
                = in[layer->wide_out ? place(layer->tall, o, i) : place(layer->tall, i, o)];
}
