/* A chunk's queries, each at its own memory, and the state that the chunk leaves. */

/* Columns of x [features, tokens], each times a number of its token. */
static void scale_columns(real *out, const real *x, const real *scale, long features, long tokens)
{
    for (long t = 0; t < padded(tokens); t += PANEL)
        for (long d = 0; d < features; d++)
            for (int s = 0; s < SPAN; s++) {
                long at = place(features, d, t) + s * LANES;
                *(vec *)(out + at) = *(const vec *)(x + at) * *(const vec *)(scale + t + s * LANES);
            }
}

/* Rows of x [tokens, features], each times two numbers of its token. */
static void scale_rows(real *out, const real *x, const real *a, const real *b, long tokens, long features)
{
    for (long c = 0; c < features; c += PANEL)
        for (long t = 0; t < tokens; t++) {
            long at = place(tokens, t, c);
            vec scale = all(a[t] * b[t]);
            for (int s = 0; s < SPAN; s++)
                *(vec *)(out + at + s * LANES) = *(const vec *)(x + at + s * LANES) * scale;
        }
}

/* The scores of queries with keys, and those mixed: G diag(w) times them, transposed. */
static void mix_scores(Work *w, long l)
{
    long tokens = w->tokens, in = w->layer[l].in;
    const Gate *g = w->gate[l];
    Product p = {.out = w->score[l], .rows = tokens, .panels = panels(tokens), .count = 1, .triangle = 1};
    p.terms[0] = term(w->x[l], in, 1, w->r[l], in);
    multiply(&p);
    for (long t = 0; t < padded(tokens); t += PANEL)
        for (long s = 0; s < least(tokens, t + PANEL); s++)
            for (int v = 0; v < SPAN; v++) {
                long at = place(tokens, s, t) + v * LANES;
                *(vec *)(w->mixed[l] + at)
                    = *(vec *)(w->score[l] + at) * *(vec *)(g->mix + at) * w->weight[l][s];
            }
}

/* Layer l's sum of the queries, each at its own memory. */
static void read_layer(Work *w, long l, real *z)
{
    const Layer *layer = &w->layer[l];
    const Gate *g = w->gate[l];
    const real *r = w->r[l];
    long across = panels(w->tokens), in = layer->in;
    int turned = !layer->wide_out;
    Term base = term(w->base[l], layer->tall, turned, r, in);
    Term memory = term(w->memory[l], layer->tall, turned, r, in);
    Term surprise = term(w->surprise[l], layer->tall, turned, r, in);
    Product p = {.out = z, .rows = layer->out, .panels = across};
    if (layer->wide_out) {
        scale_columns(w->left, r, g->first, in, w->tokens);
        scale_columns(w->right, r, g->past, in, w->tokens);
        memory.b = w->left;
        surprise.b = w->right;
        p.terms[p.count++] = memory;
        p.terms[p.count++] = surprise;
    } else {
        Product scaled = {.out = z, .rows = layer->out, .panels = across, .count = 1, .terms = {memory},
            .scale = g->first};
        multiply(&scaled);
        scaled.terms[0] = surprise;
        scaled.scale = g->past;
        scaled.add = p.add = 1;
        multiply(&scaled);
    }
    if (w->call->toward_initial)
        p.terms[p.count++] = base;
    if (w->written) {
        mix_scores(w, l);
        p.terms[p.count++] = banded(w->error[l], layer->out, w->mixed[l], w->tokens, UPTO);
    }
    if (p.count)
        multiply(&p);
}

static void write_outputs(Work *w)
{
    const Call *call = w->call;
    long width = call->width;
    const real *z = w->read_sum, *gain = call->gain + w->head * width, *bias = call->bias + w->head * width;
    if (call->gain) {
        normalize(w->read_normed, w->read_rstd, z, width, w->tokens);
        z = w->read_normed;
    }
    for (long t = 0; t < w->tokens; t++) {
        real *y = call->y + ((w->batch * call->time + w->begin + t) * call->heads + w->head) * width;
        for (long d = 0; d < width; d++) {
            long at = place(width, d, t);
            real x = call->gain ? z[at] * gain[d] + bias[d] : z[at];
            y[d] = call->residual ? x + w->r[0][at] : x;
        }
    }
}

/* What a chunk makes of memory and surprise: both decayed, plus the weighted products of its two sides. */
typedef struct {
    Term memory, surprise;
    const real *decay;
    real *old_memory, *old_surprise, *new_memory, *new_surprise;
    const real *base;
    real *matrix;
    long rows;
} Advance;

INLINE void advance_tile(const int n, const Advance *p, long i, long j)
{
    long at = (j * p->rows + i) * PANEL;
    vec sum[TALL][SPAN];
    clear(n, sum);
    accumulate(n, sum, &p->memory, i, j);
    const vec *memory = (const vec *)(p->old_memory + at), *surprise = (const vec *)(p->old_surprise + at);
    vec *out = (vec *)(p->new_memory + at);
    const vec *base = (const vec *)(p->base + at);
    vec *matrix = (vec *)(p->matrix + at);
#pragma GCC unroll 12
    for (int r = 0; r < n * SPAN; r++) {
        vec x = memory[r] * p->decay[0] + surprise[r] * p->decay[1] + sum[r / SPAN][r % SPAN];
        out[r] = x;
        if (p->matrix)
            matrix[r] = base[r] + x;
    }
    clear(n, sum);
    accumulate(n, sum, &p->surprise, i, j);
    out = (vec *)(p->new_surprise + at);
#pragma GCC unroll 12
    for (int r = 0; r < n * SPAN; r++)
        out[r] = surprise[r] * p->decay[2] + sum[r / SPAN][r % SPAN];
}

/* Memory and surprise after the chunk, which may be written over those before. */
static void advance(Work *w, real *const *memory, real *const *surprise, real *const *new_memory,
    real *const *new_surprise, int matrix)
{
    for (long l = 0; l < w->layers; l++) {
        const Layer *layer = &w->layer[l];
        const Gate *g = w->gate[l];
        long tokens = w->tokens;
        const real *tall = layer->wide_out ? w->error[l] : w->x[l];
        scale_rows(w->left, w->narrow[l], g->ends, w->weight[l], tokens, layer->narrow);
        scale_rows(w->right, w->narrow[l], g->last, w->weight[l], tokens, layer->narrow);
        Advance p = {term(tall, layer->tall, 0, w->left, tokens),
            term(tall, layer->tall, 0, w->right, tokens),
            g->decay, memory[l], surprise[l], new_memory[l], new_surprise[l], w->base[l],
            matrix && w->call->toward_initial ? w->room[l] : NULL, layer->tall};
        FOR_TILES(layer->tall, panels(layer->narrow), 0, advance_tile, &p)
    }
}
