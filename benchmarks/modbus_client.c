/* The C reference of modbus_requests.py: reads 60 holding registers of unit 1 for a while.
 *
 *   modbus_client PORT SECONDS      prints: requests wall_s cpu_s
 */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double at(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    uint16_t registers[60];
    long requests = 0;
    if (argc != 3)
        return 2;
    modbus_t *bus = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    modbus_set_slave(bus, 1);
    if (modbus_connect(bus) < 0)
        return 1;
    double wall = at(CLOCK_MONOTONIC), cpu = at(CLOCK_PROCESS_CPUTIME_ID), span = atof(argv[2]);
    while (at(CLOCK_MONOTONIC) - wall < span) {
        if (modbus_read_registers(bus, 0, 60, registers) != 60 || registers[59] != 59)
            return 1;
        requests++;
    }
    printf("%ld %f %f\n", requests, at(CLOCK_MONOTONIC) - wall, at(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    return 0;
}
