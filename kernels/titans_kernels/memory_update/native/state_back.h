/* Gradients by a piece's first memory and surprise, by M_{-1}, and by the gates. */

/* What a piece makes of the gradients by memory and surprise after it. */
typedef struct {
    Term keys[2], reads[3]; /* reads: by memory, surprise and M_{-1} */
    int key_terms;
    const real *decay, *memory, *surprise;
    real *d_memory, *d_surprise, *d_base, *d_held; /* d_held where keys are read with another memory */
    vec d_decay[3];
    long rows;
} Retreat;

INLINE void retreat_tile(const int n, Retreat *p, long i, long j)
{
    long at = (j * p->rows + i) * PANEL;
    vec *d_memory = (vec *)(p->d_memory + at), *d_surprise = (vec *)(p->d_surprise + at);
    vec *d_base = (vec *)(p->d_base + at), *d_held = (vec *)(p->d_held + at);
    const vec *memory = (const vec *)(p->memory + at), *surprise = (const vec *)(p->surprise + at);
    vec sum[TALL][SPAN], keys[TALL][SPAN];
    clear(n, sum);
    for (int s = 0; s < p->key_terms; s++)
        accumulate(n, sum, &p->keys[s], i, j);
#pragma GCC unroll 12
    for (int r = 0; r < n; r++)
        for (int v = 0; v < SPAN; v++) {
            keys[r][v] = sum[r][v];
            if (p->d_held) {
                d_held[r * SPAN + v] += sum[r][v];
                sum[r][v] = (vec){0};
            }
        }
    accumulate(n, sum, &p->reads[0], i, j);
    vec with_memory = {0}, across = {0}, with_surprise = {0};
#pragma GCC unroll 12
    for (int r = 0; r < n * SPAN; r++) {
        vec by_memory = d_memory[r], by_surprise = d_surprise[r];
        with_memory += by_memory * memory[r];
        across += by_memory * surprise[r];
        with_surprise += by_surprise * surprise[r];
        d_memory[r] = by_memory * p->decay[0] + sum[r / SPAN][r % SPAN];
        d_surprise[r] = by_memory * p->decay[1] + by_surprise * p->decay[2];
    }
    p->d_decay[0] += with_memory;
    p->d_decay[1] += across;
    p->d_decay[2] += with_surprise;
    clear(n, sum);
    accumulate(n, sum, &p->reads[1], i, j);
#pragma GCC unroll 12
    for (int r = 0; r < n * SPAN; r++)
        d_surprise[r] += sum[r / SPAN][r % SPAN];
    if (!p->d_base)
        return;
    clear(n, sum);
    accumulate(n, sum, &p->reads[2], i, j);
#pragma GCC unroll 12
    for (int r = 0; r < n * SPAN; r++)
        d_base[r] += keys[r / SPAN][r % SPAN] + sum[r / SPAN][r % SPAN];
}

static void state_back(Back *b, long l, int held)
{
    Work *w = &b->w;
    const Layer *layer = &w->layer[l];
    long tokens = w->tokens, tall = layer->tall;
    const Gate *g = w->gate[l];
    const real *ones = g->ones;
    const real *side = layer->wide_out ? b->d_read[l] : w->r[l];
    scale_rows(w->left, b->read_narrow[l], g->first, ones, tokens, layer->narrow);
    scale_rows(w->right, b->read_narrow[l], g->past, ones, tokens, layer->narrow);
    Retreat p = {.decay = g->decay, .memory = w->memory[l], .surprise = w->surprise[l],
        .d_memory = b->d_memory[l], .d_surprise = b->d_surprise[l], .rows = tall,
        .d_base = w->call->toward_initial ? b->d_base[l] : NULL, .d_held = held ? b->d_held[l] : NULL};
    p.reads[0] = term(side, tall, 0, w->left, tokens);
    p.reads[1] = term(side, tall, 0, w->right, tokens);
    p.reads[2] = term(side, tall, 0, b->read_narrow[l], tokens);
    if (w->written) {
        if (!layer->wide_out)
            turn(b->turned[l], b->d_sum[l], layer->out, tokens);
        p.keys[p.key_terms++] = layer->wide_out ? term(b->d_sum[l], tall, 0, w->narrow[l], tokens)
                                                : term(w->x[l], tall, 0, b->turned[l], tokens);
        if (l && layer->wide_out)
            turn(b->third, b->d_back[l], layer->in, tokens);
        if (l)
            p.keys[p.key_terms++] = layer->wide_out ? term(w->error[l], tall, 0, b->third, tokens)
                                                    : term(b->d_back[l], tall, 0, w->narrow[l], tokens);
    }
    FOR_TILES(tall, panels(layer->narrow), 0, retreat_tile, &p)
    for (int i = 0; i < 3; i++)
        b->d_decay[l][i] = total(p.d_decay[i]);
}

INLINE void add_gate(const View *to, const Work *w, long l, long t, real x)
{
    to->data[w->batch * to->batch + (w->begin + t) * to->time + w->head * to->head + l * to->gate] += x;
}

/* Back through the recurrences of c, p and m, then those of G and P, a panel of updates at once. */
static void gates_back(Back *b, long l)
{
    Work *w = &b->w;
    const Call *call = w->call;
    const Gate *g = w->gate[l];
    long tokens = w->tokens;
    real *d_retain = w->token, *d_keep = b->factor, *first = b->d_first[l], *past = b->d_past[l];
    if (!w->written)
        return;
    first[tokens - 1] += b->d_decay[l][0];
    past[tokens - 1] += b->d_decay[l][1];
    real by_first = 0, by_past = 0, by_kept = b->d_decay[l][2];
    real *m = b->kept_rows;
    m[0] = 1;
    for (long t = 0; t < tokens; t++)
        m[t + 1] = m[t] * g->keep[t];
    for (long t = tokens - 1; t >= 0; t--) {
        by_first += first[t];
        by_past += past[t];
        by_kept += g->live[t] * by_past;
        d_retain[t] = by_first * (t ? g->first[t - 1] : 1) + by_past * (t ? g->past[t - 1] : 0);
        d_keep[t] = by_kept * m[t];
        by_first *= g->retain[t];
        by_past *= g->retain[t];
        by_kept *= g->keep[t];
    }
    turn(b->turned_square, b->d_mix[l], tokens, tokens);
    for (long s = 0; s < tokens; s += PANEL) {
        const real *rows = b->turned_square + s * tokens;
        vec kept[SPAN], shares[SPAN], d_kept[SPAN], d_shares[SPAN];
        real one[PANEL];
        for (int v = 0; v < SPAN; v++)
            kept[v] = shares[v] = (vec){0};
        for (long t = s; t < tokens; t++) {
            memcpy(b->kept_rows + (t - s) * PANEL, kept, sizeof kept);
            memcpy(b->share_rows + (t - s) * PANEL, shares, sizeof shares);
            for (long d = 0; d < PANEL; d++)
                one[d] = s + d == t;
            for (int v = 0; v < SPAN; v++) {
                vec now;
                memcpy(&now, one + v * LANES, sizeof now);
                kept[v] = kept[v] * g->keep[t] + now;
                shares[v] = shares[v] * g->retain[t] + kept[v] * g->live[t];
            }
        }
        memcpy(d_shares, b->d_ends[l] + s, sizeof d_shares);
        memcpy(d_kept, b->d_last[l] + s, sizeof d_kept);
        for (long t = tokens - 1; t >= s; t--) {
            vec by_retain = {0}, by_keep = {0};
            for (int v = 0; v < SPAN; v++) {
                /* Before its own token an update weighs nothing, and what is owed to it does not count. */
                d_shares[v] += *(const vec *)(rows + t * PANEL + v * LANES);
                d_kept[v] += d_shares[v] * g->live[t];
                by_retain += d_shares[v] * *(vec *)(b->share_rows + (t - s) * PANEL + v * LANES);
                by_keep += d_kept[v] * *(vec *)(b->kept_rows + (t - s) * PANEL + v * LANES);
                d_shares[v] *= g->retain[t];
                d_kept[v] *= g->keep[t];
            }
            d_retain[t] += total(by_retain);
            d_keep[t] += total(by_keep);
        }
    }
    for (long t = 0; t < tokens; t++)
        if (g->live[t] != 0) {
            add_gate(&call->d_step, w, l, t, b->d_step[l][t]);
            add_gate(&call->d_momentum, w, l, t, d_keep[t]);
            add_gate(&call->d_forget, w, l, t, -d_retain[t]);
        }
}
