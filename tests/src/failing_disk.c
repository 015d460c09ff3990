// Loaded into a process: its files below the directory FAILING_DISK_FILES fail as on a bad disk. How is read from the file
// FAILING_DISK, which is mapped: see `struct state`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct state {
    uint32_t read, write, sync, space;  // the error of each operation; 0 for none. `space`: of what makes a file larger.
    uint32_t micros;                    // an fsync or fdatasync takes this long
    uint32_t part;                      // a write of more bytes than this writes only so many; 0 for all
    uint64_t inode, from, to;           // these bytes of this file cannot be read
};

static volatile const struct state *disk;
static const char *files;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_DISK");
    files = getenv("FAILING_DISK_FILES");
    int file = path && files ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, sizeof(struct state), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) disk = at;
    close(file);
}

static int is_below(const char *path) {
    return strncmp(path, files, strlen(files)) == 0;
}

// Whether the operation on an open file fails, with which error. Looks the file up only if there is one.
static int fails(int file, uint32_t error) {
    if (error == 0) return 0;
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    if (!is_below(path)) return 0;
    errno = (int)error;
    return 1;
}

static int is_bad_place(int file, uint64_t from, uint64_t to) {
    struct stat it;
    if (!disk || disk->inode == 0 || from >= disk->to || to <= disk->from) return 0;
    if (fstat(file, &it) != 0 || it.st_ino != disk->inode) return 0;
    errno = EIO;
    return 1;
}

// Signals do not shorten it: a process that waits for its disk cannot be interrupted.
static void flush(int file) {
    uint32_t wait = disk ? disk->micros : 0;
    int before = errno;
    if (wait == 0 || !fails(file, EIO)) return;
    struct timespec rest = {wait / 1000000, wait % 1000000 * 1000L};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
    errno = before;
}

#define REAL(result, name, parameters)                                  \
    static result (*real) parameters;                                   \
    if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name)

#define SYNC(name)                                                      \
    int name(int file) {                                                \
        REAL(int, name, (int));                                         \
        flush(file);                                                    \
        if (disk && fails(file, disk->sync)) return -1;                 \
        return real(file);                                              \
    }

SYNC(fsync)
SYNC(fdatasync)

ssize_t pread64(int file, void *to, size_t size, off64_t at) {
    REAL(ssize_t, pread64, (int, void *, size_t, off64_t));
    if (disk && fails(file, disk->read)) return -1;
    if (is_bad_place(file, (uint64_t)at, (uint64_t)at + size)) return -1;
    return real(file, to, size, at);
}

ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, (int, const void *, size_t, off64_t));
    if (disk && (fails(file, disk->write) || fails(file, disk->space))) return -1;
    int before = errno;
    if (disk && disk->part && size > disk->part && fails(file, EIO)) {
        errno = before;
        size = disk->part;
    }
    return real(file, from, size, at);
}

int ftruncate64(int file, off64_t size) {
    REAL(int, ftruncate64, (int, off64_t));
    struct stat it;
    int grows = fstat(file, &it) == 0 && it.st_size < size;
    if (disk && grows && fails(file, disk->space)) return -1;
    return real(file, size);
}

int open64(const char *path, int flags, ...) {
    REAL(int, open64, (const char *, int, ...));
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
        if (disk && disk->space && is_below(path) && access(path, F_OK) != 0) {
            errno = (int)disk->space;
            return -1;
        }
    }
    return real(path, flags, mode);
}
