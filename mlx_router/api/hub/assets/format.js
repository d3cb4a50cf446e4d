// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const GIB = 2 ** 30;

export const count = (number) => whole.format(number);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function gigabytes(gb) {
  if (gb >= 99.95) return `${whole.format(gb)} GB`;
  if (gb >= 0.1) return `${gb.toFixed(1)} GB`;
  return `${whole.format(gb * 1024)} MB`;
}

export const bytes = (size) =>
  size < 2 ** 20 ? `${count(Math.ceil(size / 1024))} KB` : gigabytes(size / GIB);

export const speed = (tokensPerSecond) =>
  tokensPerSecond >= 100 ? whole.format(tokensPerSecond) : tokensPerSecond.toFixed(1);

/** 32768 as 32K. */
export function context(tokens) {
  return tokens >= 1024 && tokens % 1024 === 0 ? `${count(tokens / 1024)}K` : count(tokens);
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 10) * 10} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

const two = (number) => String(number).padStart(2, "0");

/** Seconds since the epoch as the time of day here. */
export function clock(time, withSeconds = true) {
  const date = new Date(time * 1000);
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return withSeconds ? `${minutes}:${two(date.getSeconds())}` : minutes;
}
