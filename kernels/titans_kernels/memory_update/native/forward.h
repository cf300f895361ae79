/* Forward over the pieces of one row and head. */

static void place_forward(Work *w, Arena *arena, const Call *call)
{
    memset(w, 0, sizeof *w);
    place_work(w, arena, call);
}

static void read_state(const Work *w, const Weights *from, real *const *to)
{
    for (long l = 0; l < w->layers; l++)
        read_matrix(to[l], &w->layer[l], from, l, w->row, w->call->heads);
}

static void write_state(const Work *w, const Weights *to, real *const *from)
{
    for (long l = 0; l < w->layers; l++)
        write_matrix(to, from[l], &w->layer[l], l, w->row, w->call->heads);
}

/* A piece that writes opens its chunk, unless the row begins in the middle of one. */
INLINE int opens(const Work *w, long n) { return w->written && (n || w->call->phase[w->batch] == 0); }

/* The last piece that opens a chunk, or -1. */
static long last_opening(Work *w)
{
    for (long n = pieces_of(w->call, w->batch) - 1; n >= 0; n--) {
        enter_piece(w, n);
        if (opens(w, n))
            return n;
    }
    return -1;
}

static real *sums_at(const Work *w, long n)
{
    const Call *call = w->call;
    return call->sums + (w->row * call->pieces + n) * 2 * call->width * padded(w->most);
}

/* Memory and surprise of all layers, one after the other, as kept for the piece n. */
static real *state_at(const Work *w, long n)
{
    const Call *call = w->call;
    long size = 0, kept = (call->pieces + call->every - 1) / call->every;
    for (long l = 0; l < w->layers; l++)
        size += 2 * w->layer[l].area;
    return call->states + (w->row * kept + n / call->every) * size;
}

static void copy_state(real *to, const Work *w)
{
    for (long l = 0; l < w->layers; l++) {
        long area = w->layer[l].area;
        memcpy(to, w->memory[l], area * sizeof(real));
        memcpy(to + area, w->surprise[l], area * sizeof(real));
        to += 2 * area;
    }
}

static void forward_piece(Work *w, long n, long last)
{
    const Call *call = w->call;
    size_t width = call->width * padded(w->tokens);
    if (call->states && n % call->every == 0)
        copy_state(state_at(w, n), w);
    weigh_all(w);
    if (w->written) {
        read_keys(w);
        keys_forward(w);
        errors_back(w, NULL, 0);
    }
    read_tokens(w->r[0], &call->q, w, 0);
    for (long l = 0; l < w->layers - 1; l++) {
        read_layer(w, l, w->wide);
        activate(w->r[l + 1], w->wide, w->layer[l].out * padded(w->tokens), (int)call->silu);
    }
    read_layer(w, w->layers - 1, w->read_sum);
    write_outputs(w);
    if (call->sums) {
        real *sums = sums_at(w, n);
        if (w->written)
            memcpy(sums, w->sum, width * sizeof(real));
        memcpy(sums + width, w->read_sum, width * sizeof(real));
    }
    if (w->written)
        advance(w, w->memory, w->surprise, w->memory, w->surprise, n < last);
}

static void forward_row(Work *w, long row)
{
    const Call *call = w->call;
    enter_row(w, row);
    long last = last_opening(w), pieces = pieces_of(call, w->batch);
    if (last < 0 || call->phase[w->batch]) {
        read_state(w, &call->held, w->room);
        if (last < 0)
            write_state(w, &call->last_held, w->room);
        hold(w, w->room);
    }
    read_state(w, &call->memory, w->memory);
    read_state(w, &call->surprise, w->surprise);
    int added = 0;
    for (long n = 0; n < pieces; n++) {
        enter_piece(w, n);
        if (begins_document(w)) {
            read_state(w, &call->start_memory, w->memory);
            read_state(w, &call->start_surprise, w->surprise);
            added = 0;
        }
        if (opens(w, n) && !added)
            hold(w, w->memory);
        if (n == last)
            write_state(w, &call->last_held, w->memory);
        forward_piece(w, n, last);
        added = w->written && n < last && call->toward_initial;
    }
    write_state(w, &call->last_memory, w->memory);
    write_state(w, &call->last_surprise, w->surprise);
}

static void forward_thread(const void *given, char *workspace, atomic_long *next)
{
    const Call *call = given;
    Work w;
    Arena arena = {workspace, 0};
    place_forward(&w, &arena, call);
    for (long row; (row = atomic_fetch_add(next, 1)) < call->rows * call->heads;)
        forward_row(&w, row);
}
