// stages.c with libzmq inside the executable, to be stripped: of it only the wire can be seen. Built as static.c is.
#include "stages.c"
