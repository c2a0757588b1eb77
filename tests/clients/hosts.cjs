// Stands in for a line in the hosts file: api.github.com is this machine.
const dns = require('node:dns');
const real = dns.lookup;
dns.lookup = function (host, options, callback) {
  if (typeof options === 'function') [options, callback] = [{}, options];
  if (host !== 'api.github.com') return real.call(this, host, options, callback);
  const answer = [{ address: '127.0.0.1', family: 4 }];
  process.nextTick(() => (options && options.all ? callback(null, answer) : callback(null, '127.0.0.1', 4)));
};
