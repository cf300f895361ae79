/* From gates to the numbers by which the tokens of a chunk weigh in its memory. */

INLINE real gate_at(const View *from, const Work *w, long l, long t)
{
    return from->data[w->batch * from->batch + (w->begin + t) * from->time + w->head * from->head
        + l * from->gate];
}

/* The recurrence by products alone, so that a gate of exactly 0 is exact. Rows are gone through for
several tokens' updates at once, then turned. */
static void weigh(Work *w, Gate *g, long l)
{
    const Call *call = w->call;
    long tokens = w->tokens, across = padded(tokens);
    const uint8_t *mask = call->mask + w->batch * call->time + w->begin;
    for (long t = 0; t < across; t++) {
        int live = t < tokens && mask[t];
        g->live[t] = live;
        g->ones[t] = 1;
        g->step[t] = live ? gate_at(&call->step, w, l, t) : 0;
        g->keep[t] = live ? gate_at(&call->momentum, w, l, t) : 1;
        g->retain[t] = live ? 1 - gate_at(&call->forget, w, l, t) : 1;
    }
    real c = 1, m = 1, p = 0;
    for (long t = 0; t < across; t++) {
        c *= g->retain[t];
        m *= g->keep[t];
        p = p * g->retain[t] + g->live[t] * m;
        g->first[t] = t < tokens ? c : 0;
        g->past[t] = t < tokens ? p : 0;
    }
    g->decay[0] = g->first[tokens - 1];
    g->decay[1] = g->past[tokens - 1];
    g->decay[2] = m;
    for (long s = 0; s < across; s += PANEL) {
        real *rows = w->square + s * tokens; /* [tokens, a panel] */
        vec kept[SPAN], shares[SPAN];
        real one[PANEL];
        for (int v = 0; v < SPAN; v++)
            kept[v] = shares[v] = (vec){0};
        for (long t = s; t < tokens; t++) {
            vec keep = all(g->keep[t]), retain = all(g->retain[t]), live = all(g->live[t]);
            for (long d = 0; d < PANEL; d++)
                one[d] = s + d == t;
            for (int v = 0; v < SPAN; v++) {
                vec now;
                memcpy(&now, one + v * LANES, sizeof(vec));
                kept[v] = kept[v] * keep + now;
                shares[v] = shares[v] * retain + kept[v] * live;
                *(vec *)(rows + t * PANEL + v * LANES) = shares[v];
            }
        }
        memset(rows, 0, least(s, tokens) * PANEL * sizeof(real));
        memcpy(g->ends + s, shares, sizeof shares);
        memcpy(g->last + s, kept, sizeof kept);
    }
    turn(g->mix, w->square, tokens, tokens);
}

static void weigh_all(Work *w)
{
    for (long l = 0; l < w->layers; l++)
        if (w->gate[l] == &w->gates[l])
            weigh(w, w->gate[l], l);
}
