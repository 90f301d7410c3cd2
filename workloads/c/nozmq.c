// A process without libzmq, which a tracer has to refuse. Link it without -lzmq (or with
// -Wl,--as-needed before it).
#include "protocol.h"

int main(void)
{
    ready(NULL);
    await_line("go");
    done_begin();
    json_end();
    await_eof();
    return 0;
}
