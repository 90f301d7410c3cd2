// A libzmq that is loaded by path.
#pragma once
#include "protocol.h"

#include <dlfcn.h>

static inline void *open_library(const char *path, int mode)
{
    void *library = dlopen(path, mode | RTLD_LOCAL);
    if (!library)
        die("%s", dlerror());
    return library;
}

static inline void *symbol(void *library, const char *name)
{
    void *address = dlsym(library, name);
    if (!address)
        die("%s", dlerror());
    return address;
}
