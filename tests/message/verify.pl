# Verifies messages with Mail::DKIM: perl verify.pl DNS-NAME DNS-RECORD FILE…   prints "FILE result" for each.
use strict;
use warnings;
use Mail::DKIM::Verifier;
use Net::DNS::RR;

my ($name, $record, @files) = @ARGV;
{
    no warnings 'redefine';
    *Mail::DKIM::DNS::query = sub {
        my ($asked) = @_;
        return () if lc $asked ne lc $name;
        return Net::DNS::RR->new(name => $asked, type => 'TXT', txtdata => [unpack '(A200)*', $record]);
    };
}
for my $file (@files) {
    open my $message, '<:raw', $file or die "$file: $!";
    my $verifier = Mail::DKIM::Verifier->new;
    local $/;
    $verifier->PRINT(scalar <$message>);
    $verifier->CLOSE;
    print "$file ", $verifier->result_detail, "\n";
}
