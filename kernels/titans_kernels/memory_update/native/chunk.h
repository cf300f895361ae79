/* One chunk of one row and head, and where its parts stand. The op's README names them.

Of matrices of tokens most stand as [features, tokens], so that a number of each token is a vector to
multiply rows with; what multiplies from the right in the next state stands as [tokens, features]. */

#define MOST_LAYERS 16

/* How the tokens of a chunk weigh in one layer's memory; tokens that fill up a panel weigh nothing. */
typedef struct {
    real *step, *keep, *retain, *live; /* the gates [tokens]; 1 or 0 where a token is written or masked */
    real *ones;
    real *first, *past; /* c, p */
    real *ends, *last; /* the last rows of G and P */
    real *mix; /* G transposed [tokens, tokens]: column t for M_t */
    real decay[3]; /* c, p and m of the last token */
} Gate;

typedef struct {
    const Call *call;
    long layers, row, batch, head, most; /* most tokens of a chunk */
    Layer layer[MOST_LAYERS];
    real *memory[MOST_LAYERS], *surprise[MOST_LAYERS], *base[MOST_LAYERS];
    real *matrix[MOST_LAYERS], *room[MOST_LAYERS]; /* what keys are read with, and where it is made */
    Gate gates[MOST_LAYERS], *gate[MOST_LAYERS];
    long tokens, begin;
    int written;
    /* Of layer l (from 0): `x` and `r` are the inputs of keys and queries [in, tokens], `error` D. */
    real *x[MOST_LAYERS], *slope[MOST_LAYERS], *bend[MOST_LAYERS], *error[MOST_LAYERS];
    real *weight[MOST_LAYERS]; /* -step * clamp */
    real *clamp[MOST_LAYERS];
    real *r[MOST_LAYERS], *r_slope[MOST_LAYERS];
    const real *wide_backs[MOST_LAYERS];
    real *narrow[MOST_LAYERS]; /* the narrow side of the next state's product [tokens, narrow] */
    real *score[MOST_LAYERS], *mixed[MOST_LAYERS];
    real *v, *k_turned, *sum, *normed, *rstd, *read_sum, *read_normed, *read_rstd;
    real *left, *right; /* scratch: two sides scaled */
    real *wide, *wide2; /* scratch [widest, tokens] */
    real *square; /* scratch [tokens, tokens] */
    real *token; /* scratch [tokens] */
} Work;

static void place_work(Work *w, Arena *arena, const Call *call)
{
    long most = least(call->chunk, call->time), across = padded(most), widest = 0, narrowest = 0;
    w->call = call;
    w->layers = call->layers;
    w->most = most;
    int shared = call->step.gate == 0 && call->momentum.gate == 0 && call->forget.gate == 0;
    for (long l = 0; l < w->layers; l++) {
        Layer *layer = &w->layer[l];
        *layer = layer_of(call, l);
        widest = layer->tall > widest ? layer->tall : widest;
        narrowest = layer->narrow > narrowest ? layer->narrow : narrowest;
        w->memory[l] = take(arena, layer->area);
        w->surprise[l] = take(arena, layer->area);
        w->base[l] = call->toward_initial ? take(arena, layer->area) : NULL;
        w->room[l] = take(arena, layer->area);
        w->gate[l] = &w->gates[shared ? 0 : l];
        if (!shared || l == 0) {
            Gate *g = &w->gates[l];
            real **parts[] = {&g->step, &g->keep, &g->retain, &g->live, &g->ones, &g->first,
                &g->past, &g->ends, &g->last};
            for (int i = 0; i < 9; i++)
                *parts[i] = take(arena, across);
            g->mix = take(arena, most * across);
        }
        w->x[l] = take(arena, layer->in * across);
        w->r[l] = take(arena, layer->in * across);
        w->error[l] = take(arena, layer->out * across);
        w->weight[l] = take(arena, across);
        w->clamp[l] = take(arena, across);
        w->slope[l] = l ? take(arena, layer->in * across) : NULL;
        w->narrow[l] = l || !layer->wide_out ? take(arena, area(most, layer->narrow)) : NULL;
        w->score[l] = take(arena, most * across);
        w->mixed[l] = take(arena, most * across);
    }
    w->k_turned = take(arena, area(most, call->width));
    if (w->layer[0].wide_out)
        w->narrow[0] = w->k_turned;
    long width = call->width * across;
    w->v = take(arena, width);
    w->sum = take(arena, width);
    w->normed = take(arena, width);
    w->read_sum = take(arena, width);
    w->read_normed = take(arena, width);
    w->rstd = take(arena, across);
    w->read_rstd = take(arena, across);
    w->token = take(arena, across);
    long side = area(most, narrowest) > narrowest * across ? area(most, narrowest) : narrowest * across;
    w->left = take(arena, side);
    w->right = take(arena, side);
    w->wide = take(arena, widest * across);
    w->wide2 = take(arena, widest * across);
    w->square = take(arena, most * across);
}

static void enter_row(Work *w, long row)
{
    const Call *call = w->call;
    w->row = row;
    w->batch = row / call->heads;
    w->head = row % call->heads;
    for (long l = 0; call->toward_initial && l < w->layers; l++)
        read_matrix(w->base[l], &w->layer[l], &call->base, l, w->head, call->heads);
}

/* Tokens of the piece [tokens, width] as [features, tokens], or with `turned` as they are. */
static void read_tokens(real *out, const View *from, const Work *w, int turned)
{
    long width = w->call->width, tokens = w->tokens;
    const real *x = from->data + w->batch * from->batch + w->begin * from->time + w->head * from->head;
    if (turned) {
        for (long c = 0; c < width; c += PANEL)
            for (long t = 0; t < tokens; t++)
                for (long d = 0; d < PANEL; d++)
                    out[place(tokens, t, c + d)] = c + d < width ? x[t * from->time + c + d] : 0;
        return;
    }
    for (long t = 0; t < padded(tokens); t += PANEL)
        for (long d = 0; d < width; d++)
            for (long s = 0; s < PANEL; s++)
                out[place(width, d, t + s)] = t + s < tokens ? x[(t + s) * from->time + d] : 0;
}

/* A piece is the part of a chunk that one call sees. */
static void enter_piece(Work *w, long n)
{
    const Call *call = w->call;
    long phase = call->phase[w->batch];
    w->begin = n ? n * call->chunk - phase : 0;
    w->tokens = least((n + 1) * call->chunk - phase, call->time) - w->begin;
    w->written = 0;
    for (long t = 0; t < w->tokens; t++)
        w->written |= call->mask[w->batch * call->time + w->begin + t];
}

INLINE long pieces_of(const Call *call, long batch)
{
    return (call->phase[batch] + call->time + call->chunk - 1) / call->chunk;
}

INLINE int begins_document(const Work *w)
{
    const Call *call = w->call;
    return call->reset && call->reset[w->batch * call->time + w->begin];
}
