/* What a disk is told: logs writes, truncations, syncs and removals of files below JD_DIR to JD_LOG, in order.
   Loaded before libc (LD_PRELOAD) by tests/system/test_journal_power_cuts.py.
   Record: op, path length (2), offset or length (8), data length (4), path, data; little endian. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static const char *folder;
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_ftruncate)(int, off64_t), (*real_unlink)(const char *);

__attribute__((constructor)) static void begin(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    folder = getenv("JD_DIR");
    if (getenv("JD_LOG")) log_fd = open(getenv("JD_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, 1023);
    if (n < 0) return 0;
    path[n] = 0;
    return folder && !strncmp(path, folder, strlen(folder));
}

static void note(char op, const char *path, uint64_t at, const void *data, uint32_t size) {
    if (log_fd < 0) return;
    unsigned char head[15];
    uint16_t length = strlen(path);
    head[0] = op;
    memcpy(head + 1, &length, 2);
    memcpy(head + 3, &at, 8);
    memcpy(head + 11, &size, 4);
    real_write(log_fd, head, 15);
    real_write(log_fd, path, length);
    if (size) real_write(log_fd, data, size);
}

/* The log's order is the disk's: an operation and its record are one step. */
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    char path[1024];
    if (!path_of(fd, path)) return real_pwrite(fd, data, size, at);
    pthread_mutex_lock(&lock);
    ssize_t n = real_pwrite(fd, data, size, at);
    if (n > 0) note('W', path, at, data, n);
    pthread_mutex_unlock(&lock);
    return n;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

ssize_t write(int fd, const void *data, size_t size) {
    char path[1024];
    if (fd == log_fd || !path_of(fd, path)) return real_write(fd, data, size);
    pthread_mutex_lock(&lock);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t n = real_write(fd, data, size);
    if (n > 0) note('W', path, at, data, n);
    pthread_mutex_unlock(&lock);
    return n;
}

static int synced(int (*sync)(int), int fd) {
    char path[1024];
    if (!path_of(fd, path)) return sync(fd);
    pthread_mutex_lock(&lock);
    int r = sync(fd);
    if (!r) note('S', path, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return r;
}
int fsync(int fd) { return synced(real_fsync, fd); }
int fdatasync(int fd) { return synced(real_fdatasync, fd); }

int ftruncate64(int fd, off64_t size) {
    char path[1024];
    if (!path_of(fd, path)) return real_ftruncate(fd, size);
    pthread_mutex_lock(&lock);
    int r = real_ftruncate(fd, size);
    if (!r) note('T', path, size, 0, 0);
    pthread_mutex_unlock(&lock);
    return r;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int r = real_unlink(path);
    if (!r && folder && !strncmp(path, folder, strlen(folder))) note('U', path, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return r;
}
