/* One token alone: it is written, then the memory that this made is read as it is.

Matrices stand as they came, [out, in], and are gone through in order, each once where that is enough. */

typedef struct {
    const real *memory, *held, *surprise; /* of the first row and head */
    int64_t memory_batch, held_batch, surprise_batch;
    const real *base; /* M_{-1}, or absent */
    real *last_memory, *last_surprise;
    int64_t in, out;
} TokenLayer;

typedef struct {
    int64_t rows, heads, width, layers, residual, silu, dot, threads;
    double max_surprise; /* 0 without a clamp */
    const uint8_t *mask;
    /* Where `taps` is not 0, q, k and v are yet to be convolved over time, activated and brought to length 1,
    and the gates, perhaps absent, are the logits of shares, that of the step of a largest one. */
    int64_t taps;
    double max_step;
    const real *tail, *taps_weight; /* [rows, taps - 1, 3 heads width], [3 heads width, taps] */
    real *last_tail;
    /* Where given, an output is brought to mean square 1 and multiplied by both, the second activated. */
    const real *out_norm, *out_gate; /* [heads, width], [rows, heads width] */
    int64_t out_row;
    View q, k, v, step, momentum, forget;
    const real *gain, *bias; /* [heads, width], or absent */
    real *y; /* [rows, 1, heads, width] */
    TokenLayer layer[];
} TokenCall;

typedef real near_vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

INLINE vec load(const real *x) { return *(const near_vec *)x; }
INLINE void store(real *x, vec y) { *(near_vec *)x = y; }

INLINE real sum_of(vec x)
{
    real parts[LANES];
    memcpy(parts, &x, sizeof x);
#pragma GCC unroll 5
    for (long half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 16
        for (long i = 0; i < half; i++)
            parts[i] += parts[i + half];
    return parts[0];
}

/* The product of a row of base + w, the base perhaps absent, with x. */
INLINE real dot(const real *w, const real *base, const real *x, long count)
{
    vec a = {0}, b = {0};
    long i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        vec first = load(w + i), second = load(w + i + LANES);
        if (base) {
            first += load(base + i);
            second += load(base + i + LANES);
        }
        a += first * load(x + i);
        b += second * load(x + i + LANES);
    }
    real rest = 0;
    for (; i < count; i++)
        rest += (w[i] + (base ? base[i] : 0)) * x[i];
    return sum_of(a + b) + rest;
}

INLINE real square_of(const real *x, long count)
{
    return dot(x, NULL, x, count);
}

/* Adds a row of base + w times a number. */
INLINE void add_row(real *out, const real *w, const real *base, real scale, long count)
{
    long i = 0;
    for (; i + LANES <= count; i += LANES)
        store(out + i, load(out + i) + (base ? load(w + i) + load(base + i) : load(w + i)) * scale);
    for (; i < count; i++)
        out[i] += (w[i] + (base ? base[i] : 0)) * scale;
}

/* A row of surprise and memory written, and the product of the memory's with x. */
INLINE real write_row(real *memory, real *surprise, const real *w, const real *s, const real *base,
    const real *key, const real *x, real keep, real retain, real weight, long count)
{
    vec sum = {0};
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        vec now = load(s + i) * keep + load(key + i) * weight, after = load(w + i) * retain + now;
        store(surprise + i, now);
        store(memory + i, after);
        sum += (base ? after + load(base + i) : after) * load(x + i);
    }
    real rest = 0;
    for (; i < count; i++) {
        real now = s[i] * keep + key[i] * weight, after = w[i] * retain + now;
        surprise[i] = now;
        memory[i] = after;
        rest += (after + (base ? base[i] : 0)) * x[i];
    }
    return sum_of(sum) + rest;
}

typedef struct {
    real *x[MOST_LAYERS], *slope[MOST_LAYERS], *error[MOST_LAYERS];
    real *q, *k, *v, *read, *sum, *normed;
    real gates[3][MOST_LAYERS]; /* step, momentum and forget of every layer */
} TokenWork;

static void place_token(TokenWork *w, Arena *arena, const TokenCall *call)
{
    long widest = call->width;
    for (long l = 0; l < call->layers; l++) {
        const TokenLayer *layer = &call->layer[l];
        w->x[l] = take(arena, layer->in);
        w->slope[l] = take(arena, layer->in);
        w->error[l] = take(arena, layer->out);
        widest = layer->out > widest ? layer->out : widest;
    }
    w->q = take(arena, call->width);
    w->k = take(arena, call->width);
    w->v = take(arena, call->width);
    w->read = take(arena, widest);
    w->sum = take(arena, widest);
    w->normed = take(arena, widest);
}

INLINE const real *token_at(const View *from, long row, long head)
{
    return from->data + row * from->batch + head * from->head;
}

/* One head's numbers of one of q, k and v, after the convolution; the tail moves on. */
static void convolve_token(const TokenCall *call, TokenWork *w, real *out, long part, long row, long head)
{
    const View *from = part == 0 ? &call->q : part == 1 ? &call->k : &call->v;
    const real *x = token_at(from, row, head);
    long width = call->width, taps = call->taps, before = taps - 1, channels = 3 * call->heads * width;
    long first = (part * call->heads + head) * width;
    const real *tail = call->tail + row * before * channels + first;
    const real *weight = call->taps_weight + first * taps;
    real *last = call->last_tail + row * before * channels + first;
    for (long d = 0; d < width; d++)
        w->sum[d] = x[d] * weight[d * taps + before];
    for (long j = 0; j < before; j++)
        for (long d = 0; d < width; d++) {
            w->sum[d] += tail[j * channels + d] * weight[d * taps + j];
            last[j * channels + d] = j + 1 < before ? tail[(j + 1) * channels + d] : x[d];
        }
    activate(out, w->sum, padded(width), 1);
    real scale = part < 2 ? 1 / (real)sqrt(square_of(out, width) + (real)1e-6) : 1;
    for (long d = 0; d < width; d++)
        out[d] *= scale;
}

static void enter_token(const TokenCall *call, TokenWork *w, long row, long head)
{
    real *parts[] = {w->q, w->k, w->v};
    const View *views[] = {&call->q, &call->k, &call->v};
    const View *gates[] = {&call->step, &call->momentum, &call->forget};
    for (long i = 0; i < 3; i++) {
        if (call->taps)
            convolve_token(call, w, parts[i], i, row, head);
        else
            memcpy(parts[i], token_at(views[i], row, head), call->width * sizeof(real));
        for (long l = 0; l < call->layers; l++) {
            real x = gates[i]->data ? token_at(gates[i], row, head)[l * gates[i]->gate] : 0;
            if (call->taps && gates[i]->data)
                x = 1 / (1 + (real)exp(-x));
            w->gates[i][l] = call->taps && i == 0 ? x * (real)call->max_step : x;
        }
    }
}

static real normalize_token(real *out, const real *z, long width)
{
    real mean = 0, square = 0;
    for (long d = 0; d < width; d++)
        mean += z[d];
    mean /= width;
    for (long d = 0; d < width; d++)
        square += (z[d] - mean) * (z[d] - mean);
    real scale = 1 / (real)sqrt(square / width + EPSILON);
    for (long d = 0; d < width; d++)
        out[d] = (z[d] - mean) * scale;
    return scale;
}

/* D_L, from the last sum. */
static void token_error(
    const TokenCall *call, TokenWork *w, real *error, long head)
{
    long width = call->width;
    const real *k = w->k, *v = w->v;
    const real *gain = call->gain + head * width, *bias = call->bias + head * width, *z = w->sum;
    real scale = 1, mean = 0, along = 0;
    if (call->gain) {
        scale = normalize_token(w->normed, w->sum, width);
        z = w->normed;
    }
    for (long d = 0; d < width; d++) {
        real y = (call->gain ? z[d] * gain[d] + bias[d] : z[d]) + (call->residual ? k[d] : 0);
        error[d] = (call->dot ? -v[d] : 2 * (y - v[d])) * (call->gain ? gain[d] : 1);
        mean += error[d];
        along += error[d] * z[d];
    }
    for (long d = 0; d < width && call->gain; d++)
        error[d] = scale * (error[d] - mean / width - z[d] * (along / width));
}

/* The keys and errors of one row and head, at the memory held. */
static void token_keys(const TokenCall *call, TokenWork *w, long row, long head)
{
    long last = call->layers - 1;
    memcpy(w->x[0], w->k, call->width * sizeof(real));
    for (long l = 0; l <= last; l++) {
        const TokenLayer *layer = &call->layer[l];
        long size = layer->in * layer->out;
        const real *held = layer->held + row * layer->held_batch + head * size;
        const real *base = layer->base ? layer->base + head * size : NULL;
        for (long o = 0; o < layer->out; o++)
            w->sum[o] = dot(held + o * layer->in, base ? base + o * layer->in : NULL, w->x[l], layer->in);
        if (l < last)
            activate_with_slope(
                w->x[l + 1], w->slope[l + 1], NULL, w->sum, padded(layer->out), (int)call->silu);
    }
    token_error(call, w, w->error[last], head);
    for (long l = last; l > 0; l--) {
        const TokenLayer *layer = &call->layer[l];
        long size = layer->in * layer->out;
        const real *held = layer->held + row * layer->held_batch + head * size;
        const real *base = layer->base ? layer->base + head * size : NULL;
        real *back = w->error[l - 1];
        memset(back, 0, layer->in * sizeof(real));
        for (long o = 0; o < layer->out; o++)
            add_row(back, held + o * layer->in, base ? base + o * layer->in : NULL, w->error[l][o],
                layer->in);
        for (long i = 0; i < layer->in; i++)
            back[i] *= w->slope[l][i];
    }
}

static void token_row(const TokenCall *call, TokenWork *w, long row, long head)
{
    int written = call->mask[row];
    long last = call->layers - 1, width = call->width;
    real limit = (real)call->max_surprise;
    enter_token(call, w, row, head);
    if (written)
        token_keys(call, w, row, head);
    memcpy(w->read, w->q, width * sizeof(real));
    for (long l = 0; l <= last; l++) {
        const TokenLayer *layer = &call->layer[l];
        long in = layer->in, out = layer->out, size = in * out, to = (row * call->heads + head) * size;
        const real *memory = layer->memory + row * layer->memory_batch + head * size;
        const real *surprise = layer->surprise + row * layer->surprise_batch + head * size;
        const real *base = layer->base ? layer->base + head * size : NULL;
        real weight = 0, keep = 1, retain = 1;
        if (written) {
            real norm = 0;
            if (limit > 0)
                norm = (real)(sqrt(square_of(w->error[l], out)) * sqrt(square_of(w->x[l], in)));
            weight = -w->gates[0][l] * (norm <= limit ? 1 : limit / norm);
            keep = w->gates[1][l];
            retain = 1 - w->gates[2][l];
        }
        if (written)
            for (long o = 0; o < out; o++)
                w->sum[o] = write_row(layer->last_memory + to + o * in, layer->last_surprise + to + o * in,
                    memory + o * in, surprise + o * in, base ? base + o * in : NULL, w->x[l], w->read, keep,
                    retain, w->error[l][o] * weight, in);
        else {
            memcpy(layer->last_memory + to, memory, size * sizeof(real));
            memcpy(layer->last_surprise + to, surprise, size * sizeof(real));
            for (long o = 0; o < out; o++)
                w->sum[o] = dot(memory + o * in, base ? base + o * in : NULL, w->read, in);
        }
        if (l < last)
            activate(w->read, w->sum, padded(out), (int)call->silu);
    }
    const real *z = w->sum, *gain = call->gain + head * width, *bias = call->bias + head * width;
    if (call->gain) {
        normalize_token(w->normed, w->sum, width);
        z = w->normed;
    }
    real *y = call->y + (row * call->heads + head) * width;
    for (long d = 0; d < width; d++)
        y[d] = (call->gain ? z[d] * gain[d] + bias[d] : z[d]) + (call->residual ? w->q[d] : 0);
    if (!call->out_norm)
        return;
    const real *norm = call->out_norm + head * width;
    memcpy(w->sum, call->out_gate + row * call->out_row + head * width, width * sizeof(real));
    activate(w->sum, w->sum, padded(width), 1);
    real scale = 1 / (real)sqrt(square_of(y, width) / width + EPSILON);
    for (long d = 0; d < width; d++)
        y[d] *= scale * norm[d] * w->sum[d];
}

static void token_thread(const void *given, char *workspace, atomic_long *next)
{
    const TokenCall *call = given;
    TokenWork w;
    Arena arena = {workspace, 0};
    place_token(&w, &arena, call);
    /* A head's rows after each other, for the sake of M_{-1}, which they share. */
    for (long at; (at = atomic_fetch_add(next, 1)) < call->rows * call->heads;)
        token_row(call, &w, at % call->rows, at / call->rows);
}
