/* Back through a piece's queries, and what all tokens' memories are made of. */

INLINE real total(vec x)
{
    real sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += x[i];
    return sum;
}

/* Adds the rows of x [width, tokens], or of its product with y, to a gradient of each row. */
static void add_rows(real *out, const real *x, const real *y, long width, long tokens)
{
    for (long d = 0; d < width; d++) {
        vec sum = {0};
        for (long t = 0; t < padded(tokens); t += LANES) {
            long at = place(width, d, t);
            vec a = *(const vec *)(x + at);
            sum += y ? a * *(const vec *)(y + at) : a;
        }
        out[d] += total(sum);
    }
}

/* From the output's gradient that by the last layer's sum of the queries. */
static void output_back(Back *b)
{
    Work *w = &b->w;
    const Call *call = w->call;
    long width = call->width, tokens = w->tokens, last = w->layers - 1;
    View dy = {call->dy, call->time * call->heads * width, call->heads * width, width, 0};
    read_tokens(b->dy, &dy, w, 0);
    if (!call->gain) {
        memcpy(b->d_read[last], b->dy, width * padded(tokens) * sizeof(real));
        return;
    }
    const real *gain = call->gain + w->head * width;
    normalize(w->read_normed, w->read_rstd, w->read_sum, width, tokens);
    add_rows(b->d_gain, b->dy, w->read_normed, width, tokens);
    add_rows(b->d_bias, b->dy, NULL, width, tokens);
    for (long t = 0; t < padded(tokens); t += LANES)
        for (long d = 0; d < width; d++) {
            long at = place(width, d, t);
            *(vec *)(b->outer + at) = *(vec *)(b->dy + at) * gain[d];
        }
    normalize_backward(b->d_read[last], b->outer, w->read_normed, w->read_rstd, width, tokens);
}

/* Through what the chunk's own updates add to layer l's sum: by errors, inputs, weights, G and, in dr, by
the layer's own input. */
static void mixed_back(Back *b, long l, real *dr)
{
    Work *w = &b->w;
    const Layer *layer = &w->layer[l];
    const Gate *g = w->gate[l];
    long tokens = w->tokens, across = panels(tokens);
    real *dz = b->d_read[l];
    Product p = {.out = b->d_mix[l], .rows = tokens, .panels = across, .count = 1, .triangle = 1};
    p.terms[0] = term(w->error[l], layer->out, 1, dz, layer->out);
    multiply(&p);
    for (long s = 0; s < tokens; s++) {
        vec by_weight = {0};
        vec weight = all(w->weight[l][s]);
        for (long t = s / PANEL * PANEL; t < padded(tokens); t += LANES) {
            long at = place(tokens, s, t);
            vec d = *(vec *)(b->d_mix[l] + at), mix = *(vec *)(g->mix + at);
            vec d_mix = d * *(vec *)(w->score[l] + at);
            *(vec *)(b->d_score + at) = d * mix * weight;
            *(vec *)(b->d_mix[l] + at) = d_mix * weight;
            by_weight += d_mix * mix;
        }
        b->d_weight[l][s] = total(by_weight);
    }
    turn(b->turned_square, w->mixed[l], tokens, tokens);
    p = (Product){.out = b->d_error[l], .rows = layer->out, .panels = across, .count = 1};
    p.terms[0] = banded(dz, layer->out, b->turned_square, tokens, FROM);
    multiply(&p);
    turn(b->turned_square, b->d_score, tokens, tokens);
    p.out = b->d_x[l];
    p.rows = layer->in;
    p.terms[0] = banded(w->r[l], layer->in, b->turned_square, tokens, FROM);
    multiply(&p);
    p.out = dr;
    p.add = 1;
    p.terms[0] = banded(w->x[l], layer->in, b->d_score, tokens, UPTO);
    multiply(&p);
}

/* Layer l of the queries: into dr the gradient by its input. */
static void read_layer_back(Back *b, long l, real *dr)
{
    Work *w = &b->w;
    const Layer *layer = &w->layer[l];
    long tokens = w->tokens, across = padded(tokens);
    const real *dz = b->d_read[l];
    memset(b->d_first[l], 0, across * sizeof(real));
    memset(b->d_past[l], 0, across * sizeof(real));
    Product p = {.out = dr, .rows = layer->in, .panels = panels(tokens), .count = 1, .with = w->r[l]};
    p.terms[0] = term(w->memory[l], layer->tall, layer->wide_out, dz, layer->out);
    p.scale = w->gate[l]->first;
    p.dots = b->d_first[l];
    multiply(&p);
    p.terms[0].a = w->surprise[l];
    p.scale = w->gate[l]->past;
    p.dots = b->d_past[l];
    p.add = 1;
    multiply(&p);
    if (w->call->toward_initial)
        through(dr, w->base[l], layer, 1, dz, w, 1);
    if (w->written)
        mixed_back(b, l, dr);
    turn(b->read_narrow[l], layer->wide_out ? w->r[l] : dz, layer->narrow, tokens);
}

static void queries_back(Back *b)
{
    Work *w = &b->w;
    output_back(b);
    for (long l = w->layers - 1; l >= 0; l--) {
        real *dr = l ? b->d_read[l - 1] : b->d_q;
        read_layer_back(b, l, dr);
        for (long i = 0; l && i < w->layer[l].in * padded(w->tokens); i += LANES)
            *(vec *)(dr + i) *= *(vec *)(w->r_slope[l] + i);
    }
    for (long i = 0; w->call->residual && i < w->call->width * padded(w->tokens); i += LANES)
        *(vec *)(b->d_q + i) += *(vec *)(b->dy + i);
}
