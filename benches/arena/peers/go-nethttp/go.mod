module arena/go-nethttp

go 1.23
