/* The walk over the chunks of a sequence, one row and head at a time. The op's README derives it. */

#include "panels.h"
#include "pointwise.h"
#include "call.h"
#include "threads.h"
#include "chunk.h"
#include "gates.h"
#include "keys.h"
#include "queries.h"
#include "forward.h"
#include "again.h"
#include "queries_back.h"
#include "keys_back.h"
#include "state_back.h"
#include "backward.h"
#include "token.h"

int64_t forward_workspace(const Call *call)
{
    Work w;
    Arena arena = {0};
    place_forward(&w, &arena, call);
    return (int64_t)arena.used;
}

void forward(const Call *call, char *workspace)
{
    int64_t rows = call->rows * call->heads;
    over_rows(call, rows, call->threads, 0, forward_thread, workspace, forward_workspace(call));
}

int64_t backward_workspace(const Call *call)
{
    Back b;
    Arena arena = {0};
    place_backward(&b, &arena, call);
    return (int64_t)arena.used;
}

void backward(const Call *call, char *workspace)
{
    int64_t rows = call->rows * call->heads;
    over_rows(call, rows, call->threads, 0, backward_thread, workspace, backward_workspace(call));
}

int64_t token_workspace(const TokenCall *call)
{
    TokenWork w;
    Arena arena = {0};
    place_token(&w, &arena, call);
    return (int64_t)arena.used;
}

void token(const TokenCall *call, char *workspace)
{
    int64_t rows = call->rows * call->heads;
    over_rows(call, rows, call->threads, 1, token_thread, workspace, token_workspace(call));
}
