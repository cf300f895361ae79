/* Back through the next state's two sides, the clamp, the errors and the keys. */

/* From the gradients by layer l's next memory and surprise those by the two sides of what was added. */
static void advance_back(Back *b, long l)
{
    Work *w = &b->w;
    const Layer *layer = &w->layer[l];
    const Gate *g = w->gate[l];
    long tokens = w->tokens, across = padded(tokens);
    const real *weight = w->weight[l];
    const real *narrow = layer->wide_out ? w->x[l] : w->error[l];
    const real *tall = layer->wide_out ? w->error[l] : w->x[l];
    real *d_narrow = layer->wide_out ? b->d_x[l] : b->d_error[l];
    real *d_tall = layer->wide_out ? b->d_error[l] : b->d_x[l];
    const real *shares[] = {g->ends, g->last};
    real *by_shares[] = {b->d_ends[l], b->d_last[l]}, *sides[] = {w->left, w->right};
    const real *pair[] = {b->d_memory[l], b->d_surprise[l]};
    Product p = {.out = d_narrow, .rows = layer->narrow, .panels = panels(tokens), .count = 1, .add = 1,
        .with = narrow};
    for (int i = 0; i < 2; i++) {
        for (long t = 0; t < across; t++)
            b->factor[t] = t < tokens ? shares[i][t] * weight[t] : 0;
        scale_columns(sides[i], narrow, b->factor, layer->narrow, tokens);
        memset(by_shares[i], 0, across * sizeof(real));
        p.terms[0] = term(pair[i], layer->tall, 1, tall, layer->tall);
        p.scale = b->factor;
        p.dots = by_shares[i];
        multiply(&p);
        for (long t = 0; t < tokens; t++) {
            b->d_weight[l][t] += by_shares[i][t] * shares[i][t];
            by_shares[i][t] *= weight[t];
        }
    }
    p = (Product){.out = d_tall, .rows = layer->tall, .panels = panels(tokens), .count = 2, .add = 1};
    for (int i = 0; i < 2; i++)
        p.terms[i] = term(pair[i], layer->tall, 0, sides[i], layer->narrow);
    multiply(&p);
}

static void add_scaled(real *out, const real *x, const real *scale, long features, long tokens)
{
    for (long t = 0; t < padded(tokens); t += LANES)
        for (long d = 0; d < features; d++) {
            long at = place(features, d, t);
            *(vec *)(out + at) += *(const vec *)(x + at) * *(const vec *)(scale + t);
        }
}

/* Where the clamp bites, it is max_surprise / (|D| |X|). */
static void clamp_back(Back *b, long l)
{
    Work *w = &b->w;
    const Layer *layer = &w->layer[l];
    long across = padded(w->tokens);
    int bites = 0;
    for (long t = 0; t < w->tokens; t++) {
        b->d_step[l][t] = -b->d_weight[l][t] * w->clamp[l][t];
        bites |= w->clamp[l][t] != 1;
    }
    if (!bites)
        return;
    const real *sides[] = {w->error[l], w->x[l]};
    real *d_sides[] = {b->d_error[l], b->d_x[l]};
    long features[] = {layer->out, layer->in};
    for (int i = 0; i < 2; i++) {
        squares(w->token, sides[i], features[i], w->tokens);
        for (long t = 0; t < across; t++)
            b->factor[t] = t < w->tokens && w->clamp[l][t] != 1
                ? -w->weight[l][t] * b->d_weight[l][t] / w->token[t] : 0;
        add_scaled(d_sides[i], sides[i], b->factor, features[i], w->tokens);
    }
}

/* Through D_L, a derivative of a gradient: by the last sum, k, v, gain and bias. */
static void top_error_back(Back *b)
{
    Work *w = &b->w;
    const Call *call = w->call;
    long width = call->width, tokens = w->tokens, last = w->layers - 1;
    const real *gain = call->gain ? call->gain + w->head * width : NULL;
    const real *bias = gain ? call->bias + w->head * width : NULL;
    const real *d_error = b->d_error[last];
    real *by_loss = gain ? w->wide : b->d_error[last], *d_sum = b->d_sum[last];
    real two = call->dot ? 0 : 2;
    if (gain)
        normalize_backward(by_loss, d_error, w->normed, w->rstd, width, tokens);
    for (long t = 0; t < padded(tokens); t += LANES) {
        vec loss_normed = {0}, d_normed = {0}, d_errors = {0};
        for (long d = 0; d < width; d++) {
            long at = place(width, d, t);
            vec v = *(vec *)(w->v + at), by = *(vec *)(by_loss + at);
            if (!gain) {
                *(vec *)(d_sum + at) = by * two;
                continue;
            }
            vec n = *(vec *)(w->normed + at), y = n * gain[d] + bias[d];
            if (call->residual)
                y += *(vec *)(w->x[0] + at);
            vec outer = call->dot ? -v : 2 * (y - v);
            *(vec *)(b->outer + at) = by * outer + by * gain[d] * two * n;
            *(vec *)(w->wide2 + at) = by * (two * gain[d] * gain[d]);
            vec given = *(const vec *)(d_error + at);
            loss_normed += outer * gain[d] * n;
            d_normed += given * n;
            d_errors += given * *(vec *)(w->error[last] + at);
        }
        if (!gain)
            continue;
        vec scale = *(vec *)(w->rstd + t) / (real)width;
        for (long d = 0; d < width; d++) {
            long at = place(width, d, t);
            *(vec *)(b->dy + at) = -scale * (loss_normed * *(vec *)(by_loss + at)
                + d_normed * *(vec *)(w->error[last] + at) + d_errors * *(vec *)(w->normed + at));
        }
    }
    if (gain) {
        normalize_backward(d_sum, w->wide2, w->normed, w->rstd, width, tokens);
        for (long i = 0; i < width * padded(tokens); i += LANES)
            *(vec *)(d_sum + i) += *(vec *)(b->dy + i);
        add_rows(b->d_gain, b->outer, NULL, width, tokens);
        for (long t = 0; t < padded(tokens); t += LANES)
            for (long d = 0; d < width; d++)
                *(vec *)(by_loss + place(width, d, t)) *= gain[d];
        if (!call->dot) {
            for (long i = 0; i < width * padded(tokens); i += LANES)
                *(vec *)(b->outer + i) = 2 * *(vec *)(by_loss + i);
            add_rows(b->d_bias, b->outer, NULL, width, tokens);
        }
    }
    for (long i = 0; i < width * padded(tokens); i += LANES) {
        vec by = *(vec *)(by_loss + i);
        *(vec *)(b->dy + i) = call->dot ? -by : -2 * by; /* by v, and without its sign by k */
        if (!call->dot && call->residual)
            *(vec *)(b->d_x[0] + i) += 2 * by;
    }
}

/* Through the errors' chain, from layer 1 up, and then the keys', from the last layer down. */
static void keys_back(Back *b)
{
    Work *w = &b->w;
    long last = w->layers - 1;
    for (long l = 1; l <= last; l++) {
        const Layer *layer = &w->layer[l];
        const real *back = w->wide_backs[l];
        for (long i = 0; i < layer->in * padded(w->tokens); i += LANES) {
            vec d = *(vec *)(b->d_error[l - 1] + i);
            *(vec *)(b->d_back[l] + i) = d * *(vec *)(w->slope[l] + i);
            *(vec *)(b->d_sum[l - 1] + i) = d * *(const vec *)(back + i) * *(vec *)(w->bend[l] + i);
        }
        through(b->d_error[l], w->matrix[l], layer, 0, b->d_back[l], w, 1);
    }
    top_error_back(b);
    for (long l = last; l >= 0; l--) {
        const Layer *layer = &w->layer[l];
        through(b->d_x[l], w->matrix[l], layer, 1, b->d_sum[l], w, 1);
        for (long i = 0; l && i < layer->in * padded(w->tokens); i += LANES)
            *(vec *)(b->d_sum[l - 1] + i) += *(vec *)(b->d_x[l] + i) * *(vec *)(w->slope[l] + i);
    }
}
