# Outlives the process that started it for as long as it takes to tidy up after it.
#
# $1: signal that ends the server cleanly. $2: folder to remove afterwards, or empty.
# stdin: a line with the server's pid whenever it was started, an empty line whenever it has ended.
# The end of stdin means that the starting process closed the server, or died.
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
	kill -s "$1" "$pid" 2>/dev/null
	kill -s CONT "$pid" 2>/dev/null # a paused process heeds no other signal
	tries=0
	while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 100 ]; do
		sleep 0.1
		tries=$((tries + 1))
	done
	kill -s KILL "$pid" 2>/dev/null
fi
# Once more after a second: a killed server's children may still have been writing.
[ -z "$2" ] || rm -rf -- "$2" || { sleep 1 && rm -rf -- "$2"; }
