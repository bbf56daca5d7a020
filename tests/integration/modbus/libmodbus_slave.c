/* A Modbus slave of libmodbus, for tests: serves the registers that a file lists, as unit 1 to 3.
 *
 *   libmodbus_slave tcp REGISTERS            prints the port it listens on (127.0.0.1)
 *   libmodbus_slave rtu REGISTERS DEVICE UNIT BAUD
 *
 * REGISTERS: lines "input|holding ADDRESS VALUE". Everything below 8192 exists, the rest is 0.
 */
#include <arpa/inet.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static modbus_mapping_t *load(const char *path)
{
    modbus_mapping_t *map = modbus_mapping_new(0, 0, 8192, 8192);
    char table[16];
    unsigned address, value;
    FILE *file = fopen(path, "r");
    if (!map || !file)
        exit(2);
    while (fscanf(file, "%15s %u %u", table, &address, &value) == 3)
        if (address < 8192)
            (strcmp(table, "input") ? map->tab_registers : map->tab_input_registers)[address] = value;
    fclose(file);
    return map;
}

int main(int argc, char **argv)
{
    uint8_t query[MODBUS_MAX_ADU_LENGTH];
    int length, tcp = argc > 2 && !strcmp(argv[1], "tcp");
    if (argc < 3)
        return 2;
    modbus_mapping_t *map = load(argv[2]);
    modbus_t *bus;
    if (tcp) {
        struct sockaddr_in bound;
        socklen_t size = sizeof bound;
        bus = modbus_new_tcp("127.0.0.1", 0);
        int server = modbus_tcp_listen(bus, 1);
        getsockname(server, (struct sockaddr *)&bound, &size);
        printf("%d\n", ntohs(bound.sin_port));
        fflush(stdout);
        for (;;) {
            if (modbus_tcp_accept(bus, &server) < 0)
                return 1;
            while ((length = modbus_receive(bus, query)) >= 0)
                modbus_reply(bus, query, length, map);
            modbus_close(bus);
        }
    }
    bus = modbus_new_rtu(argv[3], atoi(argv[5]), 'N', 8, 1);
    modbus_set_slave(bus, atoi(argv[4]));
    if (modbus_connect(bus) < 0)
        return 1;
    printf("ready\n");
    fflush(stdout);
    for (;;)
        if ((length = modbus_receive(bus, query)) > 0)
            modbus_reply(bus, query, length, map);
}
