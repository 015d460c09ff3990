// Loaded into the processes of a PostgreSQL: each access to a file takes longer, as on a slow disk. How much is read from
// the file SLOW_DISK, which all of them map: the microseconds of an fdatasync (with which the log of transactions is
// flushed), of an fsync, and of a read or a write.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { FDATASYNC, FSYNC, TRANSFER, KINDS };

static volatile const uint32_t *micros;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SLOW_DISK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, KINDS * sizeof(uint32_t), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) micros = at;
    close(file);
}

// Signals do not shorten it: a process that waits for its disk cannot be interrupted.
static void delay(int kind) {
    uint32_t wait = micros ? micros[kind] : 0;
    if (wait == 0) return;
    int before = errno;
    struct timespec rest = {wait / 1000000, wait % 1000000 * 1000L};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
    errno = before;
}

#define SLOW(result, name, kind, parameters, arguments)                          \
    result name parameters {                                                    \
        static result (*real) parameters;                                       \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);        \
        delay(kind);                                                            \
        return real arguments;                                                  \
    }

SLOW(int, fdatasync, FDATASYNC, (int file), (file))
SLOW(int, fsync, FSYNC, (int file), (file))
SLOW(ssize_t, pread, TRANSFER, (int file, void *to, size_t size, off_t at), (file, to, size, at))
SLOW(ssize_t, pwrite, TRANSFER, (int file, const void *from, size_t size, off_t at), (file, from, size, at))
SLOW(ssize_t, pwritev, TRANSFER, (int file, const struct iovec *from, int count, off_t at), (file, from, count, at))
