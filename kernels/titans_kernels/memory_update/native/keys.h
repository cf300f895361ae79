/* The keys' part in a chunk: keys forward, errors back. */

/* Keys are read with the memory MLP's weights, from what a state holds of them. */
static void hold(Work *w, real *const *held)
{
    for (long l = 0; l < w->layers; l++) {
        w->matrix[l] = w->call->toward_initial ? w->room[l] : held[l];
        for (long i = 0; w->call->toward_initial && i < w->layer[l].area; i += LANES)
            *(vec *)(w->room[l] + i) = *(vec *)(w->base[l] + i) + *(const vec *)(held[l] + i);
    }
}

/* z = W x, or the transposed matrix times x; `add` to what is there. */
static void through(
    real *z, const real *matrix, const Layer *layer, int back, const real *x, const Work *w, int add)
{
    long rows = back ? layer->in : layer->out, depth = back ? layer->out : layer->in;
    Product p = {.out = z, .rows = rows, .panels = panels(w->tokens), .count = 1, .add = add};
    p.terms[0] = term(matrix, layer->tall, back == layer->wide_out, x, depth);
    multiply(&p);
}

static void read_keys(Work *w)
{
    const Call *call = w->call;
    read_tokens(w->x[0], &call->k, w, 0);
    if (w->layer[0].wide_out)
        read_tokens(w->k_turned, &call->k, w, 1);
    read_tokens(w->v, &call->v, w, 0);
}

/* Keys at one memory, up to the last layer's sum. */
static void keys_forward(Work *w)
{
    long last = w->layers - 1;
    for (long l = 0; l < last; l++) {
        through(w->wide, w->matrix[l], &w->layer[l], 0, w->x[l], w, 0);
        activate_with_slope(
            w->x[l + 1], w->slope[l + 1], NULL, w->wide, w->layer[l].out * padded(w->tokens),
            (int)w->call->silu);
    }
    through(w->sum, w->matrix[last], &w->layer[last], 0, w->x[last], w, 0);
}

static void top_error(Work *w)
{
    const Call *call = w->call;
    long width = call->width, last = w->layers - 1;
    const real *gain = call->gain ? call->gain + w->head * width : NULL;
    const real *bias = gain ? call->bias + w->head * width : NULL;
    const real *z = w->sum;
    real *out = gain ? w->wide : w->error[last];
    if (gain) {
        normalize(w->normed, w->rstd, w->sum, width, w->tokens);
        z = w->normed;
    }
    for (long t = 0; t < padded(w->tokens); t += PANEL)
        for (long d = 0; d < width; d++)
            for (int s = 0; s < SPAN; s++) {
                long at = place(width, d, t) + s * LANES;
                vec y = *(const vec *)(z + at), v = *(const vec *)(w->v + at), e;
                if (gain)
                    y = y * gain[d] + bias[d];
                if (call->residual)
                    y += *(const vec *)(w->x[0] + at);
                e = call->dot ? -v : 2 * (y - v);
                *(vec *)(out + at) = gain ? e * gain[d] : e;
            }
    if (gain)
        normalize_backward(w->error[last], w->wide, w->normed, w->rstd, width, w->tokens);
}

/* Squares of the columns of x [features, tokens], summed. */
static void squares(real *out, const real *x, long features, long tokens)
{
    for (long t = 0; t < padded(tokens); t += LANES) {
        vec sum = {0};
        for (long d = 0; d < features; d++) {
            vec y = *(const vec *)(x + place(features, d, t));
            sum += y * y;
        }
        *(vec *)(out + t) = sum;
    }
}

static void set_weight(Work *w, long l)
{
    real limit = (real)w->call->max_surprise;
    const real *step = w->gate[l]->step;
    if (limit > 0) {
        squares(w->token, w->error[l], w->layer[l].out, w->tokens);
        squares(w->clamp[l], w->x[l], w->layer[l].in, w->tokens);
    }
    for (long t = 0; t < padded(w->tokens); t++) {
        real size = limit > 0 ? (real)(sqrt(w->token[t]) * sqrt(w->clamp[l][t])) : 0;
        /* Not a minimum, which would hide a NaN. */
        w->clamp[l][t] = size <= limit ? 1 : limit / size;
        w->weight[l][t] = -step[t] * w->clamp[l][t];
    }
}

/* From the last layer's sum the errors of all layers, and what the next state's product wants of them.
D_l W_l goes to `backs`, if given, or stands there already. */
static void errors_back(Work *w, real *const *backs, int known)
{
    top_error(w);
    for (long l = w->layers - 1; l > 0; l--) {
        real *back = backs ? backs[l] : w->wide;
        const Layer *layer = &w->layer[l];
        if (!known)
            through(back, w->matrix[l], layer, 1, w->error[l], w, 0);
        for (long i = 0; i < layer->in * padded(w->tokens); i += LANES)
            *(vec *)(w->error[l - 1] + i) = *(vec *)(back + i) * *(vec *)(w->slope[l] + i);
    }
    for (long l = 0; l < w->layers; l++) {
        const Layer *layer = &w->layer[l];
        set_weight(w, l);
        if (!layer->wide_out)
            turn(w->narrow[l], w->error[l], layer->out, w->tokens);
        else if (l)
            turn(w->narrow[l], w->x[l], layer->in, w->tokens);
    }
}
